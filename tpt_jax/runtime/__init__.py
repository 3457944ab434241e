"""The devices and the hosts: mesh, sharding, exchanges, preemption, memory limits."""
