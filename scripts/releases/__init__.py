"""Forms in which a bundle is released, beside its own folder."""
