"""`python -m tests.simulation`: run schedules; print a failing one, shrunk, as a command."""
import os, sys, time as real_time
