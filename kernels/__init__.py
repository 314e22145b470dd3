"""The hot paths of DCLR as functions of tensors."""
