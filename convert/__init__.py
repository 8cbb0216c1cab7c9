"""A checkpoint of any family in, a verified file for any framework out."""
