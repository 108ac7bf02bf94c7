"""A running transformers model, recorded by hooks on its routers.  Part of the engine's room, floor 2.

``routers`` finds the modules that route and reads what they return, ``gates`` says what their weights mean and in
which order their experts stand, ``requests`` whose tokens a forward pass holds, ``recorder`` puts them into a trace.
It imports torch and never transformers: the model that is given has imported it.
"""
