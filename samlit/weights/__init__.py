"""Published weights, and the forms that weights have elsewhere."""
