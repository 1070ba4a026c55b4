"""Label formats of other data sets and tools, as rgfl.dota.convert reads them."""
