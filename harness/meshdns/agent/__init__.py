"""The load agent: runs inside a client container and times requests by phase on one monotonic clock.

`job` reads what is asked, `loop` decides when a request starts, `exchange` carries one request through its phases,
`dnswire`, `httpwire` and `tcpwire` read answers after the clock was stamped, `clock` judges the clock itself.
Standard library only and nothing of the rest of the project: the folder is copied into a bare image and started there.
"""
