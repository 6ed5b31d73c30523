"""Images and latents on disk, the autoencoder between them, and the data sets that training reads."""
