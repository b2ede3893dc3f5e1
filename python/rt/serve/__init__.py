"""`python -m rt.serve`: a page, REST, WebSocket and metrics around one pipeline.

It owns what a network needs: limits, validation, transports, draining. It refuses to know anything
of models: frames go into `rt.Session`, restyled frames come out.
"""
