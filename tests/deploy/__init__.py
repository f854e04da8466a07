"""What is under docker/: compose.yaml by its own program, the image really built and run."""
