//! Containers as their engines know them: bare process trees and runc; their freezer and network.
