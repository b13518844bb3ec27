# frozen_string_literal: true

InventoryItem.insert_all(
  [
    { sku: "TEA-DJ", title: "Darjeeling, 100 g", price_cents: 890, on_hand: 5_000 },
    { sku: "TEA-AS", title: "Assam, 100 g", price_cents: 690, on_hand: 5_000 },
    { sku: "POT-08", title: "Teapot, 0.8 l", price_cents: 3_490, on_hand: 5_000 },
    { sku: "CUP-02", title: "Two cups", price_cents: 1_850, on_hand: 5_000 },
    { sku: "TIN-XL", title: "Tin, large", price_cents: 1_200, on_hand: 5_000 }
  ],
  unique_by: :sku
)
