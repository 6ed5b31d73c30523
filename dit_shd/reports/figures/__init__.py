"""Charts as SVG, and pictures of images and maps."""
