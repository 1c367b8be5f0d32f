class Guess: pass
class History:
    def note(self,*a): pass
def guess(*a): return None
def setting_of(*a): return ""
