"""A map of ImageNet as Inception-v1 sees it, for those who have the images."""
