"""The steps that bring a raw T1w scan to the space of the models. prepare_data.py calls them."""
