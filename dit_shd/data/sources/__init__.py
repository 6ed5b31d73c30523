"""Where images to be encoded come from, one file each: folders, npz files, Parquet, the hub."""
