"""Start and observe a resolved plan: `compose` runs it in containers, `process` as local processes.

Only this package starts programs or talks to Docker. `rollout` changes a running stack, `observation` only reads.
"""
