"""Sources of images to be encoded, one file each: folders, npz files, Parquet, the hub."""
