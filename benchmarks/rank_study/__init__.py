"""The study behind `benchmarks/ranks.py`: do ranks chosen from spectra beat a uniform rank at equal parameters?"""
