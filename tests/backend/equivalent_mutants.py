REASONS = []
def why(mutant): return None
