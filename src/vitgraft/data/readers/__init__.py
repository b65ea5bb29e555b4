"""Sources of images: the interface (`base`), a module for each format, and `open`, which takes any of them."""
