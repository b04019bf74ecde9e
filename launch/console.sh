# Sourced by the scripts that leave a terminal behind: what is printed from there on goes to the folder internal/ of the
# workdir, which its owner alone can read, as it may tell of sensitive images. A scheduler keeps its own files for all to see.
# usage: source launch/console.sh WORKDIR [NAME]     appends to WORKDIR/internal/NAME.log

privimage_console() { # privimage_console WORKDIR [NAME]
  local log="$1/internal/${2:-console}.log"
  mkdir -p "$1" && (umask 077 && mkdir -p "$1/internal" && : >>"$log") || return 2
  chmod 700 "$1/internal" && chmod 600 "$log" || return 2
  echo "what is said from here on goes to $log"
  exec >>"$log" 2>&1
}

privimage_console "$@"
