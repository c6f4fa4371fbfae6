"""Rewards that are models; torch and transformers are imported where one starts."""
