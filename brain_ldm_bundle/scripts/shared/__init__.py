"""Code that both bundles need. The folder is the same in each, because each bundle is downloaded alone."""
