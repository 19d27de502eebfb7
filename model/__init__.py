"""Networks, front ends, losses, and the separator that joins them."""
