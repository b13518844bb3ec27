# frozen_string_literal: true

# What the shop sells, and how much of it.
class InventoryItem < ApplicationRecord
  # @return [Boolean] false: there isn't enough
  def self.reserve(sku, quantity)
    where(sku:).where("on_hand - reserved >= ?", quantity).update_all(["reserved = reserved + ?", quantity]) == 1
  end
end
