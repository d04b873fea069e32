"""The web page: choosing and starting runs, watching them, talking with what they made, looking at data.

What is imported before the page is up imports no torch: settings and models wait until they are asked for.
"""
