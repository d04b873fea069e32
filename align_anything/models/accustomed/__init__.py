"""Families with a file of their own. The file's name is the `model_type` of the configuration it serves.

Each file holds `MODEL`, the model class, and `SPEC`, the family's `FamilySpec`. Nothing here is imported before a
checkpoint of that family is asked for.
"""
