"""`privimage benchmark`: what a DP-SGD step costs, beside non-private steps and other libraries."""
