"""Runs that read text and images and draw a picture, such as an edited one."""
