"""``make crash``: a rig that kills a working cachefs in every way it knows, and looks for what was lost.

``rounds`` says how each kill is done, ``load`` keeps the mount busy, ``lives`` starts and kills, ``audit`` compares
what is there with what was acknowledged (``journal``) and what the cache folder holds with its index. The product has
no code for it: ``plant`` puts ``failpoints`` into the server, for the steps that ``steps`` finds in its modules.
``powerloss`` cuts the power instead, on a recording.
"""
