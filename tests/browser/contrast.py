"""Contrast of the texts inside an element, from its computed styles."""

TEXTS = """(root) => {
    const number = (colour) => {
        const canvas = document.createElement('canvas')
        canvas.width = canvas.height = 1
        const context = canvas.getContext('2d', { willReadFrequently: true })
        context.fillStyle = colour
        context.fillRect(0, 0, 1, 1)
        const [red, green, blue, alpha] = context.getImageData(0, 0, 1, 1).data
        return [red, green, blue, alpha / 255]
    }
    const over = (top, below, opacity) => {
        const share = top[3] * opacity
        return [0, 1, 2].map((i) => top[i] * share + below[i] * (1 - share))
    }
    const chain = (element) => {
        const all = []
        for (let one = element; one; one = one.parentElement) all.unshift(one)
        return all
    }
    const light = (colour) => {
        const parts = colour.map((part) => part / 255)
            .map((p) => (p <= 0.03928 ? p / 12.92 : ((p + 0.055) / 1.055) ** 2.4))
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
    }
    const texts = []
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT)
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement
        if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue
        let below = [255, 255, 255]
        let opacity = 1
        for (const one of chain(element)) {
            const style = getComputedStyle(one)
            opacity *= Number(style.opacity)
            const back = number(style.backgroundColor)
            if (back[3]) below = over(back, below, opacity)
        }
        const front = over(number(getComputedStyle(element).color), below, opacity)
        const [low, high] = [light(front), light(below)].sort((a, b) => a - b)
        texts.push([walker.currentNode.data.trim().slice(0, 40), element.tagName,
            (high + 0.05) / (low + 0.05)])
    }
    return texts
}"""
