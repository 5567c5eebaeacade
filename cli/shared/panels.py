"""The panels into which the help of every command sorts its options and commands."""

MODEL = "Model"
GRID = "Data and grid"
INTERVENTIONS = "Interventions"
TRAINING = "Training"
SAMPLING = "Sampling"
FIGURES = "Figures"
JUDGEMENT = "Judgement"
OUTPUT = "Output"
OTHERS = "Options"  # what is in none of them, always last

OF_OPTIONS = (
    MODEL, GRID, INTERVENTIONS, TRAINING, SAMPLING, FIGURES, JUDGEMENT, OUTPUT, OTHERS,
)  # fmt: skip

MEASURE = "Measure a model"
FINISHED = "Look at finished analyses"
TRAIN = "Train and draw samples"
MACHINE = "This machine"
