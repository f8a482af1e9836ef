"""Studies of the loss kernel on images, beside other similarities of the same items."""
