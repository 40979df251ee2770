"""Image files of every format that we read, in any colours and some of them damaged, as upright sRGB images."""
