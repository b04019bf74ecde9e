"""What the commands share that make many runs in one folder: sweeps and studies."""
