"""What a tuned model refuses, what it takes people for, and how it speaks: before and after."""
