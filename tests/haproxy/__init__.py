"""haproxy.cfg, tried with a real haproxy in front of real receivers."""
