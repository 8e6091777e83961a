"""One file per variant; each declares its constant (see distft.plugin)."""
