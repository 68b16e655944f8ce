"""What `smallfirst demo` shows, every number measured in that run.

`questions`: real function-calling questions, answered by an untrained small model. `conversion`: the whole loop, on the
simulated help-desk agent (`smallfirst.helpdesk`), by calls that `traffic` sends through a running gateway.
"""
