"""Five study notes on batch normalization brought to life on real digits, with libbatchnorm."""
