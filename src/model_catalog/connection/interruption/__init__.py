"""Interrupts steps on async connections at a deadline or a cancellation."""
