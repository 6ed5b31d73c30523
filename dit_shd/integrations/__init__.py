"""SHD in other people's training loops."""
