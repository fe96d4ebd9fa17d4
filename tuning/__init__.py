"""The search over learning rate and weight decay on Ray Tune."""
