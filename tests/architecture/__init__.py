"""What no single module can promise: who imports whom, and that the files beside the code fit it."""
