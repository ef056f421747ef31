"""How fast do names and endpoints follow change, and what becomes of traffic until then?"""
