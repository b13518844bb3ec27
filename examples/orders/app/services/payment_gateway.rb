# frozen_string_literal: true

# Pretends to be somebody else's service. What it answers depends on the card
# and on how often it was asked, so that a run can be predicted.
class PaymentGateway
  # No use in asking again.
  class Declined < StandardError
    def code = "card_declined"
  end

  # Says when to ask again.
  class Busy < StandardError
    def retry_after = 0.3
  end

  # Says nothing: the money may have been taken, or not.
  class Timeout < StandardError; end

  # Its books: what it was asked.
  class Request < ApplicationRecord
    self.table_name = "gateway_requests"
  end

  # Its books: the money that it took.
  class Payment < ApplicationRecord
    self.table_name = "gateway_payments"
  end

  # Answers to the first requests; after them a card is accepted.
  ANSWERS = {
    "tok_ok" => [],
    "tok_declined" => %w[declined],
    "tok_busy_once" => %w[busy],
    "tok_busy_twice" => %w[busy busy],
    "tok_answer_lost" => %w[answer_lost]
  }.freeze

  SECONDS = 0.04

  # @return [Payment] the same one for the same key
  # @raise [Declined, Busy, Timeout]
  def self.charge(card_token:, amount_cents:, idempotency_key:)
    sleep SECONDS
    answer = ANSWERS.fetch(card_token)[Request.where(idempotency_key:).count] || "accepted"
    Request.create!(idempotency_key:, answer:)
    case answer
    when "declined" then raise Declined, "the bank has declined the card"
    when "busy" then raise Busy, "the payment gateway is busy"
    end

    payment = Payment.create_or_find_by!(idempotency_key:) { |p| p.attributes = { amount_cents:, reference: "pay_#{SecureRandom.hex(6)}" } }
    raise Timeout, "no answer from the payment gateway" if answer == "answer_lost" # after the money was taken

    payment
  end
end
