def note_case(*a): pass
