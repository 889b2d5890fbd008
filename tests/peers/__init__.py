"""The same spans into tracedb and into other tracing stores: how fast, and what a kill loses."""
