from .lockstep import lockstep
