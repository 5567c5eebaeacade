"""The paper's comparison at one's own scale: plan, runs, records, results and claims."""
